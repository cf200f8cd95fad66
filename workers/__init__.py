"""The Celery application, its routes and schedule, the training runner, and the embedded stack."""

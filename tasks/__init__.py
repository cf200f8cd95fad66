"""The doors: Celery tasks, the Python API, the command line and the demo."""

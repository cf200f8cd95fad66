"""`python -m trainer JOB.json`."""

from trainer.process import main

if __name__ == "__main__":
    raise SystemExit(main())

"""End to end: real servers, real Celery workers in processes of their own."""

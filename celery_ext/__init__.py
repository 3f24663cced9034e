"""What a broker alone cannot express, for Celery apps on kombu_reliable."""

from __future__ import annotations

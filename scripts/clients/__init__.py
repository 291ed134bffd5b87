"""Clients that people use, run as they are against `sightline serve`; see scripts/check_clients.py."""

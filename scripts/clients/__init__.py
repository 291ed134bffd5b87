"""Clients that people use, run as they are against a server; see scripts/check_clients.py."""

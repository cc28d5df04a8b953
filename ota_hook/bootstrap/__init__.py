"""Joins the adapters to the ports and runs the roles. The one place that names concrete adapters.

A module for each role, service.py for all; none of them decides anything.
"""

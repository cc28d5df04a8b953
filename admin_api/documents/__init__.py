"""Requests and responses of the API as models: which fields there are, of what shape, and how ours become them.

A module for each resource, fields.py for what all are made of; none must know a store or a route.
"""

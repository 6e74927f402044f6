"""Mixtures of experts: routers, banks, dispatch, balance. One idea a file."""

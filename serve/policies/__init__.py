"""Versioned policies: their store on disk, and how replicas come to serve them."""

"""Voices that users make: their consent, their recordings, and what is kept of them."""

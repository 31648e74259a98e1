"""A local RunPod: its HTTP interface and its queue in front of real workers that run on this machine."""

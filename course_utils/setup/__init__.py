"""What a notebook sets up first: the profile, the hardware, where files lie.

Modules: `profiles` (which model and data this machine gets), `hardware`, `preflight`
(is this machine ready?), `quiet` (library messages), `places` (the course's own files),
`folders` (folders that are written completely or not at all).
Used by every other room; uses none of them.
"""

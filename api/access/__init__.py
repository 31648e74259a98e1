"""Who may use which door: keys, browser sessions, tickets, scopes."""

"""The guest agent: what it reports, and what it is asked."""

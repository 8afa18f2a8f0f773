"""The guest agent: polling, and operations on the guest."""

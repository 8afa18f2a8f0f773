"""Secondary networks: CNI invocations, attachments and their records."""

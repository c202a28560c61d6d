"""The long-running program: image messages in, one verdict per message out."""

"""The `roseate` command: what can be asked for, and how. What is done stands in the other rooms."""

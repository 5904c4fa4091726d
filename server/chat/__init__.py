"""One chat request: from its body to messages, and from tokens to completions."""

"""What an answer does with text: detokenization, and drafts by prompt lookup."""

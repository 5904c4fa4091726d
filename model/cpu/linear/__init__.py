"""Matrix products of the decoder's linear layers, with whole and quantized weights."""

"""Matrix products of linear layers, with unquantized and quantized weights."""

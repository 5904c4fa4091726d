"""Phi-3-vision itself: network, weights, image and text inputs. Knows nothing of requests."""

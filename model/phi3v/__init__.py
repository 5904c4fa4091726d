"""Phi-3-vision: network, weights, image and text inputs. Independent of the engine."""

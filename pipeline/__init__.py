"""What the server, training and the tools share: specification, sampler, networks, export, serving."""

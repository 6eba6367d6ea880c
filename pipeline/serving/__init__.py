"""A server as a child of this process: started, asked, drained, ended."""

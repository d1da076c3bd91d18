"""The cluster part of `cosched demo`: a site of two edge nodes on a local Ray, and four UEs that generate split."""

"""Tasks on a Ray cluster: Ray finds them machines and brings back what was lost; evener does everything else.

`starter` is the launcher's side, `host` what stands on a node: one actor for each life of a task. Orders and reports go
through Ray, which knows the way and who may use it; parameters and gradients never do, they take evener's own links.
"""

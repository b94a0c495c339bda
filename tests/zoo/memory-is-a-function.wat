;; Something else is called memory.
;; start: no memory called `memory`
(memory 2)
(export "memory" (func $describe_zoo))

;; No memory to put arguments into.
;; start: no memory called `memory`
(memory 2)

;; A second memory beside the first.
;; load: memor
(memory (export "memory") 2)
(memory $second 256)

;; More initial memory than `memory_mib`.
;; breaks: memory_mib
;; load: memory
(memory (export "memory") 257)

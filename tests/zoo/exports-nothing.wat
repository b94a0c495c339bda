;; No plugin at all.
;; load: exports no `polyskill_v1_init` | export! macro
(module (memory (export "memory") 1))

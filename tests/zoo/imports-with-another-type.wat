;; A host function with another signature.
;; load: incompatible import type | log
(module (import "polyskill_v1" "log" (func (param i64)))
    (memory (export "memory") 1)
    (func (export "polyskill_v1_init") (param i32) (result i32) unreachable)
    (func (export "polyskill_v1_plan") (param i32 i32) (result i32) unreachable))

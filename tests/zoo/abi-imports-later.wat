;; This ABI's exports with a later one's imports.
;; load: unknown import | polyskill_v2
(module (import "polyskill_v2" "log" (func (param i32 i32 i32 i32)))
    (memory (export "memory") 1)
    (func (export "polyskill_v1_init") (param i32) (result i32) unreachable)
    (func (export "polyskill_v1_plan") (param i32 i32) (result i32) unreachable))

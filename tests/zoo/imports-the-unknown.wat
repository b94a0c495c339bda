;; A host function that there is not.
;; load: unknown import | polyskill_v1 | read_file
(module (import "polyskill_v1" "read_file" (func (param i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "polyskill_v1_init") (param i32) (result i32) unreachable)
    (func (export "polyskill_v1_plan") (param i32 i32) (result i32) unreachable))

;; Wants the host's memory.
;; load: unknown import | memory
(module (import "env" "memory" (memory 1))
    (export "memory" (memory 0))
    (func (export "polyskill_v1_init") (param i32) (result i32) unreachable)
    (func (export "polyskill_v1_plan") (param i32 i32) (result i32) unreachable))

;; What should be a function is a number.
;; load: polyskill_v1_plan
(module (memory (export "memory") 1)
    (global (export "polyskill_v1_plan") i32 (i32.const 0))
    (func (export "polyskill_v1_init") (param i32) (result i32) unreachable))

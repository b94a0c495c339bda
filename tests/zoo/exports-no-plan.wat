;; Half of what is required.
;; load: exports polyskill_v1_init; | `polyskill_v1_plan`
(module (memory (export "memory") 1)
    (func (export "polyskill_v1_init") (param i32) (result i32) unreachable))

;; A later ABI.
;; load: exports polyskill_v2_init, polyskill_v2_plan | accepts flat ABI 1
(module (memory (export "memory") 1)
    (func (export "polyskill_v2_init") (param i32) (result i32) unreachable)
    (func (export "polyskill_v2_plan") (param i32 i32) (result i32) unreachable))

;; An older ABI than there ever was.
;; load: exports polyskill_v0_init, polyskill_v0_plan | accepts flat ABI 1
(module (memory (export "memory") 1)
    (func (export "polyskill_v0_init") (param i32) (result i32) unreachable)
    (func (export "polyskill_v0_plan") (param i32 i32) (result i32) unreachable))

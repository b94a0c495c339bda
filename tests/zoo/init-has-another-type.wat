;; Its init takes nothing.
;; start: its `polyskill_v1_init` | expected
(func (export "polyskill_v1_init") (result i32) (i32.const 0))

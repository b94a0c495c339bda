;; Its plan takes wide pointers.
;; start: its `polyskill_v1_plan` | expected
(func (export "polyskill_v1_plan") (param i64 i64) (result i32) (i32.const 0))

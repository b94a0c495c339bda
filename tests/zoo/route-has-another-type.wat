;; Its route returns nothing.
;; start: its `polyskill_v1_route` | expected
(func (export "polyskill_v1_route") (param i32 i32 i32))

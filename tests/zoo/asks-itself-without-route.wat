;; Leaves rows to a `route` that it does not have.
;; fails: it exports no `polyskill_v1_route`
(func $plan (param i32 i32) (result i32) (call $ask_rows))

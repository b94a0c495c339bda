;; Leaves rows to a `route` that it does not have.
;; plan: leaves rows to `route`
(func $plan (param i32 i32) (result i32) (call $ask_rows))

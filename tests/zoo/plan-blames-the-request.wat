;; Calls every parameter wrong: the caller hears of it.
;; parameter: `plan` gave no reason
(func $plan (param i32 i32) (result i32) (i32.const 3))

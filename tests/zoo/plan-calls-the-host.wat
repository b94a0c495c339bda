;; An endless loop of host calls.
;; limits: plan_fuel = 9000000000000000000, plan_milliseconds = 30
;; plan: `plan` | interrupt
(func $plan (param i32 i32) (result i32)
    (loop $l (drop (call $singular_vector (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 50) (i64.const 1)
        (i32.const 8192) (i32.const 1024))) (br $l)) unreachable)

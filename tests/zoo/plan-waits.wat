;; Fuel for ever, but no time.
;; limits: plan_fuel = 9000000000000000000, plan_milliseconds = 30
;; breaks: plan_milliseconds
;; plan: `plan` | interrupt
(func $plan (param i32 i32) (result i32) (loop $l (br $l)) unreachable)

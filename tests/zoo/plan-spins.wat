;; An endless loop in plan.
;; limits: plan_fuel = 20000000
;; breaks: plan_fuel
;; plan: `plan` | all fuel consumed
(func $plan (param i32 i32) (result i32) (loop $l (br $l)) unreachable)

;; An endless loop without a loop and without a stack.
;; limits: plan_fuel = 20000000
;; plan: `plan` | all fuel consumed
(func $plan (param i32 i32) (result i32) (return_call $plan (local.get 0) (local.get 1)))

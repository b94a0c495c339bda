;; An endless loop in route.
;; limits: route_fuel = 1000000
;; breaks: route_fuel
;; traps: `route` | all fuel consumed
(func $route (param i32 i32 i32) (result i32) (loop $l (br $l)) unreachable)
